"""The processes of the service: on one machine by a supervisor, on a cluster by Ray Serve."""
