//! planet.
