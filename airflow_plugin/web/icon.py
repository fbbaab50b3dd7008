"""The icon of the tabs, which Airflow's UI asks for without saying who looks."""

from __future__ import annotations

from typing import Final

# A fill that stands out on dark grounds and a line that does on light ones: a tab is drawn on both.
ICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="#fbbf24" stroke="#b45309" stroke-width="1.5" '
    'stroke-linejoin="round"><path d="M13 2 4 14h7l-1 8 9-12h-7z"/></svg>'
)
