//! `multifd relay`: a migration passed on, its packets encoded anew.

use crate::args::Relay;
use crate::encoding::Chosen;
use crate::failure::Failure;
use crate::progress::{Rounds, Slot};
use crate::report::{self, Counts};
use crate::{method, signals, threads};
use indicatif::HumanBytes;
use multifd_core::{Progress, ReceiverConfig, SenderConfig};
use multifd_qemu::{RelayOptions, Relayed, relay};
use serde::Serialize;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

#[derive(Serialize)]
struct Shown {
    ok: bool,
    seconds: f64,
    rounds: u64,
    /// From the source's word that its guest has stopped to the destination's end: no shorter than
    /// the guest's pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_seconds: Option<f64>,
    main_bytes: u64,
    incoming_compression: String,
    outgoing_compression: &'static str,
    incoming: Counts,
    outgoing: Counts,
    /// Bytes that came in over channels, for each that went out.
    ratio: f64,
    incoming_channels: usize,
    outgoing_channels: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    auto: Option<Chosen>,
}

pub(crate) fn run(args: &Relay) -> Result<(), Failure> {
    args.threads.apply()?;
    let cancel = signals::cancel_on_signal()?;
    let encoder = args.encoding.encoder(args.channels)?;
    let socket = args.tuning.options();
    let transport = args.exit.transport(socket, &args.tls.connecting())?;
    let mut listener = args
        .entrance
        .open(socket, &args.tls.listening(), args.show)?;
    let budget = args.memory.budget();
    let watch = Slot::default();
    let started: Arc<OnceLock<Instant>> = Arc::default();
    let begun = Arc::clone(&started);
    let on_start = watch.on_passing(
        "passing through",
        args.show.quiet,
        &Rounds::counted_by_channels(),
    );
    let receiver = ReceiverConfig::default()
        .methods(method::decoders(None, &budget))
        .memory_budget(budget)
        .require_checksums(args.trust.require_checksum)
        .progress(Arc::new(Progress::new(socket.stall)))
        .thread_start(Some(threads::receiving()))
        .cancel(cancel);
    let options = RelayOptions::default()
        .receiver(receiver)
        .sender(SenderConfig::default().checksums(args.encoding.checksums()))
        .incoming(args.from_channels)
        .outgoing(args.channels)
        .finish(args.finishing.timeout())
        .on_start(Some(Box::new(move |incoming, outgoing| {
            let _ = begun.set(Instant::now());
            on_start(incoming, outgoing);
        })));
    let passed = relay(&mut listener, &transport, encoder.encode(), options);
    drop(watch);
    let passed = passed?;
    let shown = Shown {
        ok: true,
        seconds: started
            .get()
            .map_or(0.0, |begun| begun.elapsed().as_secs_f64()),
        rounds: passed.rounds,
        pause_seconds: passed.pause.map(|pause| pause.as_secs_f64()),
        main_bytes: passed.main_bytes,
        incoming_compression: report::methods(&passed.methods),
        outgoing_compression: encoder.name(),
        incoming: passed.incoming.total().into(),
        outgoing: passed.outgoing.total().into(),
        ratio: ratio(&passed),
        incoming_channels: passed.incoming.channels.len(),
        outgoing_channels: passed.outgoing.channels.len(),
        auto: encoder.chosen(),
    };
    report::print(args.show.json, &shown, &line(&shown))
}

#[allow(clippy::cast_precision_loss)] // A figure for people to read.
fn ratio(passed: &Relayed) -> f64 {
    let [incoming, outgoing] =
        [&passed.incoming, &passed.outgoing].map(|stats| stats.total().wire_bytes);
    incoming as f64 / outgoing.max(1) as f64
}

fn line(shown: &Shown) -> String {
    let [incoming, outgoing] =
        [&shown.incoming, &shown.outgoing].map(|counts| HumanBytes(counts.wire_bytes()));
    let mut line = format!(
        "passed on {} rounds in {:.2} s: {incoming} in over {} channels ({}), {outgoing} out over {} ({}), ratio {:.2}",
        shown.rounds,
        shown.seconds,
        shown.incoming_channels,
        shown.incoming_compression,
        shown.outgoing_channels,
        shown.outgoing_compression,
        shown.ratio,
    );
    if let Some(pause) = shown.pause_seconds {
        // Writing to a String does not fail.
        let _ = write!(
            line,
            "\nthe guest stood still for at most {:.0} ms, as seen from here",
            pause * 1000.0
        );
    }
    if let Some(auto) = &shown.auto {
        line.push('\n');
        line.push_str(auto.line());
    }
    line
}
