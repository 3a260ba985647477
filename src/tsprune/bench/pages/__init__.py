"""What is made of a grid's rows: tables, rank tests, figures and pages."""
