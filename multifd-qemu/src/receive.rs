//! The destination of a migration: reading a main channel to its end.

use crate::input::Input;
use crate::receive_options::{ReceiveOptions, Received};
use crate::reception::Reception;
use crate::sections::{CONFIGURATION, read_header};
use crate::{Configuration, Error, Limits};
use multifd_core::{ChannelError, ChannelSource, Error as EngineError, Progress};
use std::io::Read;
use std::sync::Arc;

/// Receives a migration: reads `main` to its end, takes channels from `source`, and returns when
/// all of the VM is in place and every channel has ended in order.
///
/// The source does not learn of it: see [`IncomingMigration`](crate::IncomingMigration).
///
/// # Errors
/// [`Error`]: the first thing that went wrong, on any channel. All threads are gone then.
pub fn receive(
    main: impl Read,
    source: &mut dyn ChannelSource,
    options: ReceiveOptions,
) -> Result<Received, Error> {
    let cancel = options.engine.common.cancel.clone();
    let mut reception = Reception::new(main, source, options);
    // The engine still lives when its first error is looked for: it cancels itself when it is
    // dropped.
    reception.run().map_err(|error| match cancel.error() {
        Some(first) if can_follow(&error) => first.into(),
        _ => error,
    })
}

/// Whether an error can be the consequence of another: whatever ends a transfer also ends its waits
/// on the main channel, and on channels to come.
fn can_follow(error: &Error) -> bool {
    let stopped = |cause: &ChannelError| matches!(cause, ChannelError::Stopped);
    match error {
        Error::Io { .. } | Error::Truncated { .. } | Error::Stalled { .. } => true,
        Error::Engine(EngineError::Channel { cause, .. }) => stopped(cause),
        _ => false,
    }
}

/// Reads the first elements of a main channel, up to the machine's configuration and one byte more:
/// for a relay, which has to know the page size.
///
/// # Errors
/// [`Error`], if it is not a main channel.
pub fn read_configuration(
    main: impl Read,
    limits: &Limits,
    progress: Arc<Progress>,
) -> Result<Configuration, Error> {
    let mut input = Input::new(main, 0, Some(progress));
    read_header(&mut input)?;
    if input.u8("the first element")? != CONFIGURATION {
        return Ok(Configuration::default());
    }
    Ok(Configuration::read(&mut input, limits)?.0)
}
