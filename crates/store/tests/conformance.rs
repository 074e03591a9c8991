//! The published rules, on the reference engine.

mod reference_replica;

use reference_replica::ReferenceReplica;

#[test]
fn every_rule_holds_on_the_reference_engine() {
    for seed in 0..20 {
        geode_store::conformance::run(|region, regions| ReferenceReplica::new(region, regions, seed));
    }
}
