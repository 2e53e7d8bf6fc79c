"""Types, protocols, records, seeds and errors. Imports nothing else of ours."""
