"""Housekeeping: files that may go by the operator's policy, and files and rows that belong to nothing any more.

Rows go first and files after them, so a crash in between leaves a file without a row, which the next sweep deletes;
never a row whose file has gone without a word. The numbers stay: retention deletes files and cached stages alone.
"""
