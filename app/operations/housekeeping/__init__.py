"""Housekeeping: deletes files that the operator's retention policy no longer keeps, cached stages, and orphans.

Rows are deleted before files, so a crash in between leaves an orphan, which the next run deletes, and never a row whose
file is gone. Results are never deleted: retention applies to files and cached stages only.
"""
