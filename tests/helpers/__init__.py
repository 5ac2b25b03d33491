"""What several tests use: small models, made-up runs and logs, servers, processes. No test is here."""
