"""What HTTP needs around every resource: the application, its connections, callers, problems and documents."""
