"""The history of a campaign in SQL; the only room that knows SQLAlchemy."""
