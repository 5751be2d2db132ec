"""The method as plain functions of records and back-ends: no pipeline, no files."""
