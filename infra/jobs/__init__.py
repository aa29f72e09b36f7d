"""What happens without a command from outside: expiries, retention, erasure."""
