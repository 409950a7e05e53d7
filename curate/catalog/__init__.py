"""The catalog: a folder with `catalog.duckdb` for narrow tables and Parquet files for vectors."""
