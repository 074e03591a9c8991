//! geode.
fn main() {}
