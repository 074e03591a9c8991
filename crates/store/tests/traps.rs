//! The data model's traps, each a rule of the suite, by name.

mod reference_replica;

use reference_replica::ReferenceReplica;

macro_rules! traps {
    ($($name:ident: $rule:literal;)*) => {
        $(
            #[test]
            fn $name() {
                for seed in 0..10 {
                    let make = |region: &str, regions| ReferenceReplica::new(region, regions, seed);
                    geode_store::conformance::run_rule($rule, make);
                }
            }
        )*
    };
}

traps! {
    multi_incr_del_incr_keeps_the_second_increment: "trap: MULTI INCR, DEL, INCR";
    multi_sadd_srem_sadd_keeps_the_second_add: "trap: MULTI SADD, SREM, SADD";
    counts_do_not_start_at_minus_the_cancelled_amount: "trap: counts after a delete";
    an_owner_counts_on_before_it_hears_of_two_deletes: "trap: an owner that counts on";
    flushall_knows_how_much_of_a_sum_it_takes: "trap: FLUSHALL knows";
    expiry_leaves_a_concurrent_increment_its_ttl: "trap: expiry takes no TTL";
    a_plain_set_does_not_vanish_by_a_concurrent_expire: "trap: a plain SET";
    a_creation_does_not_vanish_by_a_concurrent_expire: "trap: a creation";
    the_old_string_does_not_reappear_after_the_last_srem: "trap: the old string";
    an_infinite_value_is_no_base_of_a_sum: "trap: an infinite value";
    floats_are_folded_in_one_order: "trap: floats";
}
