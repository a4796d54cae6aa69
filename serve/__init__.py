"""The service: renders over HTTP. Records are in SQL, long work is done by worker processes, requests only ask and look.

`jobs/records.py` has the rules of a job, `jobs/jobs.py` runs them on a database, `api/` is the HTTP side, `jobs/worker.py`
the other.
"""
