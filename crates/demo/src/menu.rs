//! The one menu of all shops.

/// A drink.
pub(crate) struct Drink {
    /// Its name in requests and in the store.
    pub(crate) id: &'static str,
    /// Its name for people.
    pub(crate) name: &'static str,
    /// Its price in cents.
    pub(crate) price_cents: u32,
}

const fn drink(id: &'static str, name: &'static str, price_cents: u32) -> Drink {
    Drink { id, name, price_cents }
}

/// Everything on offer.
pub(crate) const DRINKS: [Drink; 6] = [
    drink("espresso", "Espresso", 250),
    drink("flat-white", "Flat white", 380),
    drink("cappuccino", "Cappuccino", 360),
    drink("filter", "Filter coffee", 290),
    drink("cold-brew", "Cold brew", 420),
    drink("mocha", "Mocha", 440),
];

/// The names of all drinks, in the menu's order.
pub(crate) fn ids() -> impl Iterator<Item = &'static str> {
    DRINKS.iter().map(|drink| drink.id)
}

/// A drink's own name, if it is on the menu.
pub(crate) fn find(id: &str) -> Option<&'static str> {
    ids().find(|known| *known == id)
}
