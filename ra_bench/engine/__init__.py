"""Where units run: each in a process of its own, so that one failure cannot hurt another."""
