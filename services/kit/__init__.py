"""What every service shares: bootstrap, settings, database, errors, logs. It knows no domain."""
