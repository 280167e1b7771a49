"""What was found, in SQL: what is kept (`entries`), tables (`schema`), connection (`database`), writing (`exporter`,
`sink`), deleting what is old (`retention`), and reading (`reader`)."""
