"""What was found, in SQL: tables (`schema`), the connection (`database`), writing (`exporter`, `entries`), reading
(`reader`), and deleting what is old (`retention`)."""
