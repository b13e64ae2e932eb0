"""The protocols as small programs, searched for schedules that break a promise: see README.md in this folder."""
