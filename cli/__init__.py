"""The `recapture` command."""
