"""The service: renders over HTTP. Records are in SQL, long work is done by worker processes, requests only ask and look.

`records.py` has the rules of a job, `jobs.py` runs them on a database, `app.py` is the HTTP side, `worker.py` the other.
"""
