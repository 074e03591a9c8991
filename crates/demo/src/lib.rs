//! The demo service of a planet: a coffee chain with one shop per region and one menu.
