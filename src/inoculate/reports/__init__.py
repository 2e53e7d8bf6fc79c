"""Reports: tables, charts and pages made from records alone. Never imports torch."""
