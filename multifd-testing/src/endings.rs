//! How a migration ends, at every step at which either end may go away.

use crate::{bytes, guest, write};
use multifd_core::{
    BoxError, CancelHandle, Gathering, MainListener, MainTransport, Plain, RamMap, Receiver,
    ReceiverConfig, Sender, SenderConfig, SyncScope,
};
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver as Signal, Sender as Signaller, channel};
use std::time::Duration;

/// A transport, and where its migrations come in.
type Ends = (Box<dyn MainTransport + Send>, Box<dyn MainListener + Send>);

const CHANNELS: u8 = 2;
const PAGES: u64 = 300;

/// What the main connection carries before the round, and after it.
const BEFORE: &[u8] = b"QEVM, then the RAM section's start";
const AFTER: &[u8] = b"the device sections";

/// How long anything may take that should happen at once, on a machine that is busy.
const AT_ONCE: Duration = Duration::from_secs(60);

/// Where a source goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Connected,
    Started,
    Queued,
    /// At the round's border: the channels owe nothing.
    Synced,
    /// The channels have ended in order.
    ChannelsFinished,
    Finishes,
}

/// Where a destination goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Accepted,
    Attached,
    /// At the round's border.
    Synced,
    /// It has read all, and then fails to keep it.
    Received,
    Accepts,
}

/// Drops a migration at each step, once its source and once its destination, and asks that the
/// other end learns of it. A migration that neither end drops has to arrive.
///
/// | dropped | what the other end must see |
/// | --- | --- |
/// | the source: connected, started, in a round, at a round's border, with its channels ended | `Receiver` or the read of the main connection fails |
/// | the destination: accepted, attached, at a round's border, with all received | `Sender` or `Outgoing::finish` fails |
///
/// # Panics
/// If an end takes a transfer for complete that the other has dropped.
pub fn endings_conformance(mut connect: impl FnMut() -> Ends) {
    let (sent, arrived) = migrate(connect(), Source::Finishes, Target::Accepts);
    assert!(
        sent.is_ok() && arrived.is_ok(),
        "a migration that nobody drops does not arrive: {sent:?}, {arrived:?}"
    );
    for stop in [
        Source::Connected,
        Source::Started,
        Source::Queued,
        Source::Synced,
        Source::ChannelsFinished,
    ] {
        let (_, arrived) = migrate(connect(), stop, Target::Accepts);
        assert!(
            arrived.is_err(),
            "the destination takes a migration for complete whose source went away: {stop:?}"
        );
    }
    for stop in [
        Target::Accepted,
        Target::Attached,
        Target::Synced,
        Target::Received,
    ] {
        let (sent, _) = migrate(connect(), Source::Finishes, stop);
        assert!(
            sent.is_err(),
            "the source takes a migration for arrived whose destination went away: {stop:?}"
        );
    }
}

type Outcome = Result<(), BoxError>;

fn migrate((transport, listener): Ends, source: Source, target: Target) -> (Outcome, Outcome) {
    let (told, signal) = channel();
    let (done, outcome) = channel();
    let ends = done.clone();
    let memory = guest("pc.ram", PAGES);
    for page in 0..PAGES {
        write(&memory, page, &format!("page {page}"));
    }
    let copy = guest("pc.ram", PAGES);
    let expected = bytes(&memory);
    let taken = copy.clone();
    std::thread::spawn(move || {
        let _ = done.send((true, send(transport.as_ref(), &memory, source, &signal)));
    });
    std::thread::spawn(move || {
        let mut listener = listener;
        let outcome = receive(listener.as_mut(), &copy, target, &told);
        let _ = ends.send((false, outcome));
    });
    let mut outcomes = (None, None);
    for _ in 0..2 {
        let (is_source, ended) = outcome
            .recv_timeout(AT_ONCE)
            .unwrap_or_else(|_| panic!("an end hangs: {source:?}, {target:?}"));
        if is_source {
            outcomes.0 = Some(ended);
        } else {
            outcomes.1 = Some(ended);
        }
    }
    let (Some(sent), Some(arrived)) = outcomes else {
        panic!("both ends answer once");
    };
    if arrived.is_ok() {
        assert!(bytes(&taken) == expected, "the guest's memory differs");
    }
    (sent, arrived)
}

fn dropped() -> Outcome {
    Err("dropped".into())
}

fn send(
    transport: &dyn MainTransport,
    memory: &RamMap,
    stop: Source,
    signal: &Signal<()>,
) -> Outcome {
    let mut main = transport.connect_main()?;
    main.write_all(BEFORE)?;
    main.flush()?;
    // A destination that went away signals no more.
    let _ = signal.recv_timeout(AT_ONCE);
    if stop == Source::Connected {
        return dropped();
    }
    let config = SenderConfig::default().channels(CHANNELS);
    let mut sender = Sender::start(memory.clone(), &Plain, transport, &config)?;
    if stop == Source::Started {
        return dropped();
    }
    sender.queue_range(0, 0, PAGES * 4096)?;
    if stop == Source::Queued {
        return dropped();
    }
    sender.sync(SyncScope::Peer)?;
    let _ = signal.recv_timeout(AT_ONCE);
    if stop == Source::Synced {
        return dropped();
    }
    sender.finish()?;
    main.write_all(AFTER)?;
    main.flush()?;
    if stop == Source::ChannelsFinished {
        return dropped();
    }
    Ok(main.finish(AT_ONCE)?)
}

fn receive(
    listener: &mut dyn MainListener,
    memory: &RamMap,
    stop: Target,
    signal: &Signaller<()>,
) -> Outcome {
    let mut main = listener.accept_main()?;
    if stop == Target::Accepted {
        return dropped();
    }
    // What it carries shows whether it is whole.
    main.connection().accept_unmarked_end(true);
    let _ = signal.send(());
    main.read_exact(&mut [0; BEFORE.len()])?;
    let cancel = CancelHandle::default();
    let config = ReceiverConfig::default().cancel(cancel);
    let mut receiver = Receiver::new(memory.clone(), config)?;
    receiver.attach_all(listener, Some(CHANNELS.into()), Gathering::Due)?;
    if stop == Target::Attached {
        return dropped();
    }
    receiver.wait_sync()?;
    if stop == Target::Synced {
        return dropped();
    }
    let _ = signal.send(());
    let mut after = Vec::new();
    main.read_to_end(&mut after)?;
    if after != AFTER {
        return Err("the main connection ends early".into());
    }
    receiver.finish()?;
    if stop == Target::Received {
        return dropped();
    }
    Ok(main.accept()?)
}
