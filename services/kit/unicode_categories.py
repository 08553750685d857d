"""Names of Unicode's categories, as Go's regular expressions know them."""

from __future__ import annotations

import re

MINOR = {
    "L": "Lu Ll Lt Lm Lo",
    "M": "Mn Mc Me",
    "N": "Nd Nl No",
    "P": "Pc Pd Ps Pe Pi Pf Po",
    "S": "Sm Sc Sk So",
    "Z": "Zs Zl Zp",
    "C": "Cc Cf Cs Co Cn",
}
"""The minor categories of each one-letter category."""

ALIASES = {
    re.sub("_", "", alias).capitalize(): name
    for name, aliases in {
        "LC": "Lc Cased_Letter",
        "Pe": "Close_Punctuation",
        "M": "Combining_Mark Mark",
        "Pc": "Connector_Punctuation",
        "Cc": "Control Cntrl",
        "Sc": "Currency_Symbol",
        "Pd": "Dash_Punctuation",
        "Nd": "Decimal_Number Digit",
        "Me": "Enclosing_Mark",
        "Pf": "Final_Punctuation",
        "Cf": "Format",
        "Pi": "Initial_Punctuation",
        "L": "Letter",
        "Nl": "Letter_Number",
        "Zl": "Line_Separator",
        "Ll": "Lowercase_Letter",
        "Sm": "Math_Symbol",
        "Lm": "Modifier_Letter",
        "Sk": "Modifier_Symbol",
        "Mn": "Nonspacing_Mark",
        "N": "Number",
        "Ps": "Open_Punctuation",
        "C": "Other",
        "Lo": "Other_Letter",
        "No": "Other_Number",
        "Po": "Other_Punctuation",
        "So": "Other_Symbol",
        "Zp": "Paragraph_Separator",
        "Co": "Private_Use",
        "P": "Punctuation Punct",
        "Z": "Separator",
        "Zs": "Space_Separator",
        "Mc": "Spacing_Mark",
        "Cs": "Surrogate",
        "S": "Symbol",
        "Lt": "Titlecase_Letter",
        "Cn": "Unassigned",
        "Lu": "Uppercase_Letter",
    }.items()
    for alias in aliases.split()
}
"""Go's unicode.CategoryAliases, in the form in which they are looked up: first letter upper case, the others lower
case, nothing in between.
"""
