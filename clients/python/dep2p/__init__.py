"""Python client of dep2pd."""
