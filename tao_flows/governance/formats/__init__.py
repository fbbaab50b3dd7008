"""The formats that others read: each module makes one document of the facts of a run.

Amounts in them are ``Decimal``: ``amounts.json_text`` writes them as JSON numbers with all their digits.
"""
