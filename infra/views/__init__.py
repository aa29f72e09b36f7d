"""Views in operation: reads bound to a ledger, their status, and the commands of operators."""
