"""Alerts: messages to people about what a rule finds, by e-mail or chat; and calendars of when codes end."""
