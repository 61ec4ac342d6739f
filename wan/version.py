"""The version of this package, stored in every video it makes."""

VERSION = "0.1.0"
