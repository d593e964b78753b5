//! The feature `tracing`: a span for a transfer, each of its channels and each round, and events
//! for what the engine decides.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used)]

use multifd_core::{Gathering, Plain, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope};
use multifd_testing::{Pipes, PipesEnd, Trace, guest};

#[test]
fn transfers_channels_and_rounds_are_spans() {
    let trace = Trace::start();
    let pipes = Pipes::new(2);
    let mut source = PipesEnd::of(&pipes);
    let mut receiver = Receiver::new(guest("pc.ram", 16), ReceiverConfig::default()).unwrap();
    let mut sender = Sender::start(
        guest("pc.ram", 16),
        &Plain,
        &pipes,
        &SenderConfig::default(),
    )
    .unwrap();
    receiver
        .attach_all(&mut source, Some(2), Gathering::Due)
        .unwrap();
    for _ in 0..2 {
        sender.queue_range(0, 0, 16 * 4096).unwrap();
        sender.sync(SyncScope::Peer).unwrap();
        receiver.wait_sync().unwrap();
    }
    sender.finish().unwrap();
    receiver.finish().unwrap();
    let lines = trace.lines();
    for direction in ["send", "recv"] {
        for span in ["transfer", "channel", "round"] {
            let begin = format!("span {span} direction={direction}");
            let mut found: Vec<&String> = lines
                .iter()
                .filter(|line| line.starts_with(&begin))
                .collect();
            found.sort();
            let expected = match span {
                "transfer" => vec![begin],
                _ => (0..2)
                    .map(|number| format!("{begin} {span}={number}"))
                    .collect(),
            };
            assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{lines:#?}");
        }
    }
    assert!(
        lines.contains(&"event channels attached channels=2".into()),
        "{lines:#?}"
    );
}
