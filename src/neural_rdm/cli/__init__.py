"""Floor 6, beside the commands: how every command reads its arguments, refuses mistakes, resumes and launches jobs."""
