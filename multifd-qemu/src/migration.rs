//! Both ends of a migration from the first connection to the last word: what tells the other end
//! whether it has arrived.

use crate::{Error, ReceiveOptions, Received, SendOptions, Sent, Snapshot, receive, send};
use multifd_core::{
    CancelHandle, ChannelError, Encode, Incoming, MainListener, MainTransport, Outgoing,
    UnblockGuard,
};
use std::time::Duration;

/// A migration that has connected to us. [`IncomingMigration::accept`] tells the source that it has
/// arrived. Dropped before, after whatever error, it is a failure there.
///
/// ```no_run
/// # use multifd_core::{CancelHandle, MainListener};
/// # use multifd_qemu::{Error, IncomingMigration, ReceiveOptions};
/// # fn keep(_: &multifd_qemu::Snapshot) -> Result<(), Error> { Ok(()) }
/// # fn take(listener: &mut dyn MainListener) -> Result<(), Error> {
/// let options = ReceiveOptions::default();
/// let cancel = options.engine.common.cancel.clone();
/// let mut migration = IncomingMigration::wait(listener, &cancel)?;
/// let received = migration.receive(listener, options)?;
/// keep(&received.snapshot)?;
/// migration.accept()
/// # }
/// ```
#[derive(Debug)]
pub struct IncomingMigration {
    main: Incoming,
    cancel: CancelHandle,
    guards: Vec<UnblockGuard>,
    /// All of it has been received.
    received: bool,
}

impl IncomingMigration {
    /// Waits for a migration. `cancel` ends that wait, and all that come after; hand the same to
    /// [`IncomingMigration::receive`].
    ///
    /// # Errors
    /// [`Error::Connection`] if none comes; [`Error::Engine`] if it was cancelled.
    pub fn wait(listener: &mut dyn MainListener, cancel: &CancelHandle) -> Result<Self, Error> {
        let doing = |doing| move |cause| failed(cancel, doing, cause);
        let stop = listener.unblock_handle().map_err(doing("listening"))?;
        let mut guards = vec![cancel.also_unblock(stop)];
        let mut main = listener
            .accept_main()
            .map_err(doing("waiting for a migration"))?;
        let stop = main.connection().read_unblock_handle();
        guards.push(cancel.also_unblock(stop.map_err(doing("setting up the main connection"))?));
        Ok(Self {
            main,
            cancel: cancel.clone(),
            guards,
            received: false,
        })
    }

    /// Receives it. After an error this still holds the connection open; drop it to let the source
    /// know.
    ///
    /// # Errors
    /// As [`receive`].
    pub fn receive(
        &mut self,
        listener: &mut dyn MainListener,
        options: ReceiveOptions,
    ) -> Result<Received, Error> {
        // QEMU's description at the end of the stream shows that nothing is missing.
        self.main
            .connection()
            .accept_unmarked_end(options.need_vmdesc);
        let received = receive(&mut self.main, listener, options)?;
        self.received = true;
        Ok(received)
    }

    /// Tells the source that the migration has arrived, and is where it is to stay.
    ///
    /// # Errors
    /// [`Error::Connection`] if the source is known to have given up; [`Error::Engine`] if the
    /// migration was cancelled, or has not been received.
    pub fn accept(self) -> Result<(), Error> {
        let Self {
            main,
            cancel,
            guards,
            received,
        } = self;
        if let Some(error) = cancel.error() {
            return Err(error.into());
        }
        if !received {
            let why = "a migration that has not been received cannot be accepted";
            return Err(multifd_core::Error::Misconfigured(why.into()).into());
        }
        drop(guards);
        main.accept()
            .map_err(|cause| failed(&cancel, "ending the main connection", cause))
    }
}

/// A migration on its way to a destination. [`OutgoingMigration::finish`] learns whether it has
/// arrived. Dropped before, it is a failure there.
///
/// ```no_run
/// # use multifd_core::{MainTransport, Plain};
/// # use multifd_qemu::{Error, OutgoingMigration, SendOptions, Snapshot};
/// # use std::time::Duration;
/// # fn give(snapshot: &Snapshot, transport: &dyn MainTransport) -> Result<(), Error> {
/// let options = SendOptions::default();
/// let cancel = options.sender.common.cancel.clone();
/// let mut migration = OutgoingMigration::connect(transport, &cancel)?;
/// migration.send(snapshot, &Plain, transport, options)?;
/// migration.finish(Duration::from_secs(600))
/// # }
/// ```
#[derive(Debug)]
pub struct OutgoingMigration {
    main: Outgoing,
    cancel: CancelHandle,
    guards: Vec<UnblockGuard>,
}

impl OutgoingMigration {
    /// Connects the main connection. `cancel` ends every wait on it; hand the same to
    /// [`OutgoingMigration::send`].
    ///
    /// # Errors
    /// [`Error::Connection`] if the destination cannot be reached.
    pub fn connect(transport: &dyn MainTransport, cancel: &CancelHandle) -> Result<Self, Error> {
        let doing = |cause| failed(cancel, "connecting", cause);
        let mut main = transport.connect_main().map_err(doing)?;
        let stop = main.connection().unblock_handle().map_err(doing)?;
        Ok(Self {
            main,
            guards: vec![cancel.also_unblock(stop)],
            cancel: cancel.clone(),
        })
    }

    /// Sends a VM.
    ///
    /// # Errors
    /// As [`send`].
    pub fn send<'a>(
        &mut self,
        snapshot: &Snapshot,
        encode: impl Into<Encode<'a>>,
        transport: &dyn MainTransport,
        options: SendOptions,
    ) -> Result<Sent, Error> {
        send(snapshot, &mut self.main, encode, transport, options)
    }

    /// The main connection, to be written to.
    #[cfg(all(feature = "file", feature = "qmp"))]
    pub(crate) fn main(&mut self) -> &mut Outgoing {
        &mut self.main
    }

    /// Ends the migration, and waits for at most `timeout` until the destination has taken it.
    ///
    /// # Errors
    /// [`Error::Connection`] if it does not, or has failed.
    pub fn finish(self, timeout: Duration) -> Result<(), Error> {
        self.finish_noting(timeout, || ())
    }

    /// As [`OutgoingMigration::finish`]; calls `waiting` once if the destination takes its time.
    ///
    /// # Errors
    /// As [`OutgoingMigration::finish`].
    pub fn finish_noting(self, timeout: Duration, waiting: impl FnOnce()) -> Result<(), Error> {
        let Self {
            main,
            cancel,
            guards,
        } = self;
        let doing = "all is sent, but the destination does not seem to have taken it";
        let finished = main.finish_noting(timeout, waiting);
        drop(guards);
        finished.map_err(|cause| failed(&cancel, doing, cause))
    }
}

/// Why a connection failed: what has ended the migration, if that is known.
pub(crate) fn failed(cancel: &CancelHandle, doing: &'static str, cause: ChannelError) -> Error {
    match cancel.error() {
        Some(first) => first.into(),
        None => Error::Connection { doing, cause },
    }
}
