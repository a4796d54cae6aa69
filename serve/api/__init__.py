"""The HTTP side: routes, what every request passes, how errors look."""
