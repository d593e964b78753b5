//! The conformance test over this crate's own transport.

use multifd_testing::{Network, Pipes, PipesEnd, endings_conformance, transport_conformance};

#[test]
fn pipes_keep_the_rules() {
    transport_conformance(|channels| {
        let pipes = Pipes::new(channels);
        let source = PipesEnd::of(&pipes);
        (Box::new(pipes), Box::new(source))
    });
}

#[test]
fn migrations_in_memory_end_right() {
    endings_conformance(|| {
        let network = Network::new();
        let listener = network.listener();
        (Box::new(network), Box::new(listener))
    });
}
