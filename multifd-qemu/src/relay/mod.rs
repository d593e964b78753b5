//! A whole migration relayed: its main connection passed on unchanged, its channels encoded anew.
//!
//! ```text
//!   source                        relay                        destination
//!   main      ------------->  forward, followed  ------------->  main
//!   main      <-------------  back               <-------------  main
//!   channels  ------------->  PassOn, a Sender   ------------->  channels
//! ```

mod channels;
mod copies;
mod mains;
mod options;
mod pass_on;

use crate::migration::failed;
use crate::{Error, read_configuration};
use channels::relay_channels;
use copies::Tee;
use mains::Mains;
use multifd_core::packet::Compression;
use multifd_core::{Encode, MainListener, MainTransport, Stats};
pub use options::RelayOptions;
use std::sync::Arc;
use std::time::Duration;

/// A migration that has been relayed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Relayed {
    /// What came in over channels.
    pub incoming: Stats,
    /// What went out over channels.
    pub outgoing: Stats,
    /// Methods that came in.
    pub methods: Vec<Compression>,
    /// Rounds.
    pub rounds: u64,
    /// Bytes of the main connection, from the source on.
    pub main_bytes: u64,
    /// From the source's word that its guest has stopped to the destination's end: no shorter than
    /// the guest's pause. `None` if the source's main channel did not tell.
    pub pause: Option<Duration>,
}

/// Waits for a migration at `listener`, passes it on by `transport`, and returns when both ends are
/// done with it. The main connection passes unchanged; packets are decoded, encoded by `encode`,
/// and sent over as many channels as wanted, round by round. Guest RAM is not held.
///
/// `Ok` means that the destination has closed its main connection in order. With a return path, only
/// the two ends know the verdict.
///
/// # Errors
/// [`Error`]: the first thing that went wrong. Both ends see a failure then.
pub fn relay<'a>(
    listener: &mut dyn MainListener,
    transport: &dyn MainTransport,
    encode: impl Into<Encode<'a>>,
    mut options: RelayOptions,
) -> Result<Relayed, Error> {
    let cancel = options.receiver.common.cancel.clone();
    let doing = |doing| {
        let cancel = cancel.clone();
        move |cause| failed(&cancel, doing, cause)
    };
    let stop = listener.unblock_handle().map_err(doing("listening"))?;
    let _listener_guard = cancel.also_unblock(stop);
    let mut source = listener
        .accept_main()
        .map_err(doing("waiting for a migration"))?;
    let stop = source.connection().read_unblock_handle();
    let source_guard = cancel.also_unblock(stop.map_err(doing("setting up the main connection"))?);
    let mut tee = Tee::new(&mut source);
    let progress = Arc::clone(&options.receiver.common.progress);
    let configuration = read_configuration(&mut tee, &options.limits, progress)?;
    let seen = tee.into_seen();
    drop(source_guard);
    let mut destination = transport
        .connect_main()
        .map_err(doing("connecting to the destination"))?;
    for main in [source.connection(), destination.connection()] {
        // The far end knows by the bytes themselves whether the stream is whole.
        main.accept_unmarked_end(true);
    }
    let mains = Mains::new(&options, destination.connection(), seen)?;
    let on_start = options.on_start.take();
    let page_size = configuration.page_size();
    let relayed = mains.pass(source.connection(), destination.connection(), || {
        let on_open = Box::new(|incoming, outgoing| {
            mains.open();
            if let Some(on_start) = on_start {
                on_start(incoming, outgoing);
            }
        });
        relay_channels(listener, transport, encode, &options, page_size, on_open)
    })?;
    let pause = mains.pause();
    // Both sides of both connections have ended: these are the last words.
    destination
        .finish(options.finish)
        .map_err(doing("ending the migration"))?;
    source
        .accept()
        .map_err(doing("ending the main connection"))?;
    Ok(Relayed {
        incoming: relayed.incoming,
        outgoing: relayed.outgoing,
        methods: relayed.methods,
        rounds: relayed.rounds,
        main_bytes: mains.bytes(),
        pause,
    })
}
