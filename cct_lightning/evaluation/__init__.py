"""What a test found: outcomes, measures, tables, pictures. Reads networks and data, trains nothing."""
