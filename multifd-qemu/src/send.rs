//! The source of a migration: a VM at rest, sent as QEMU would send it.

use crate::output::{
    push_block, push_end, push_flush, push_footer, push_header, push_ram_more, push_ram_start,
    push_switchover_start, push_total, push_zero_page,
};
use crate::sections::{END, PART};
use crate::{Error, Snapshot, Started, SyncStyle};
use multifd_core::{
    CancelHandle, Encode, RamBlock, Sender, SenderConfig, Stats, SyncScope, Transport, ZeroPages,
    ZeroTest, common_setters, config,
};
use std::io::Write;
use std::sync::Arc;

/// Bytes of the main channel that are written at once.
const ROOM: usize = 64 << 10;

config! {
    /// How to send a VM.
    pub struct SendOptions {
        /// Channels, zero pages, write flags, and the handle that ends the migration from
        /// elsewhere. The UUID is the snapshot's.
        sender: SenderConfig = SenderConfig::default(),
        /// When to sync. `None`: as the machine type does.
        sync: Option<SyncStyle> = None,
        /// How zero pages travel. `None`: as a QEMU of the machine type's age understands.
        zero_pages: Option<ZeroPageStyle> = None,
        /// Called once, when the channels are open.
        on_start: Option<Box<dyn FnOnce(Started) + Send>> = None,
    }
}
common_setters!(SendOptions, sender.common);

impl std::fmt::Debug for SendOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendOptions")
            .field("sender", &self.sender)
            .field("sync", &self.sync)
            .field("zero_pages", &self.zero_pages)
            .finish_non_exhaustive()
    }
}

/// How zero pages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ZeroPageStyle {
    /// Named in packets (QEMU's `multifd`, from 9.0 on).
    Packets,
    /// Named on the main channel (`legacy`).
    Main,
    /// Like any other page (`none`).
    Data,
}

/// A migration that has been sent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Sent {
    /// What went over the channels, each and all.
    pub stats: Stats,
    /// Bytes of the main channel.
    pub main_bytes: u64,
    /// How rounds were told to the destination.
    pub sync: SyncStyle,
}

/// Sends a VM: all of it over `main` and the channels of `transport`. When this returns, all of it
/// is on its way. [`OutgoingMigration`](crate::OutgoingMigration) learns whether it has arrived.
///
/// # Errors
/// [`Error`]: the first thing that went wrong, on any channel. All threads are gone then.
pub fn send<'a>(
    snapshot: &Snapshot,
    main: impl Write,
    encode: impl Into<Encode<'a>>,
    transport: &dyn Transport,
    options: SendOptions,
) -> Result<Sent, Error> {
    let configuration = snapshot.configuration.with_mapped_ram(false);
    let sync = options
        .sync
        .unwrap_or(match configuration.syncs_each_section() {
            Some(true) => SyncStyle::EachSection,
            Some(false) | None => SyncStyle::EachRound,
        });
    let zero_pages =
        options
            .zero_pages
            .unwrap_or(match configuration.knows_zero_pages_in_packets() {
                Some(false) => ZeroPageStyle::Main,
                Some(true) | None => ZeroPageStyle::Packets,
            });
    let id = snapshot.ram_section;
    let mut out = Output {
        main,
        room: Vec::new(),
        written: 0,
        cancel: options.sender.common.cancel.clone(),
        id,
    };
    push_header(&mut out.room);
    configuration.write(&mut out.room);
    // The main connection says what it is before any channel does.
    out.flush("the configuration")?;

    let mut config = options.sender.uuid(snapshot.uuid);
    let told = match &snapshot.zero_pages {
        ZeroPages::Told(told) => Some(Arc::clone(told)),
        _ => None,
    };
    match zero_pages {
        ZeroPageStyle::Packets if told.is_some() => {
            config.zero_pages.clone_from(&snapshot.zero_pages);
        }
        ZeroPageStyle::Packets => {}
        ZeroPageStyle::Main | ZeroPageStyle::Data => config.zero_pages = ZeroPages::Off,
    }
    if zero_pages == ZeroPageStyle::Data && told.is_some() {
        let why = "the places of zero pages mean nothing in this snapshot's memory: they cannot be sent as data";
        return Err(multifd_core::Error::Unsupported(why.into()).into());
    }
    let mut sender = Sender::start(snapshot.ram.clone(), encode, transport, &config)?;
    let blocks = snapshot.blocks();
    push_ram_start(&mut out.room, id);
    push_total(&mut out.room, snapshot.ram.total_len());
    for block in &blocks {
        push_block(&mut out.room, &block.name, block.used_length);
    }
    if let Some(on_start) = options.on_start {
        let stats = sender.stats_handle();
        on_start(Started { stats, blocks });
    }
    out.end_section(&mut sender, sync, true)?;
    out.write(snapshot.tail.early(), "the device sections")?;

    push_ram_more(&mut out.room, PART, id);
    for (index, block) in snapshot.ram.blocks().iter().enumerate() {
        if zero_pages == ZeroPageStyle::Main {
            out.queue_but_zero_pages(&mut sender, index, block, told.as_deref())?;
        } else {
            sender.queue_range(index, 0, block.len())?;
        }
    }
    out.end_section(&mut sender, sync, false)?;

    if snapshot.switchover_start {
        push_switchover_start(&mut out.room);
    }
    push_ram_more(&mut out.room, END, id);
    out.end_section(&mut sender, sync, true)?;

    out.write(snapshot.tail.bytes(), "the device sections")?;
    Ok(Sent {
        stats: sender.finish()?,
        main_bytes: out.written,
        sync,
    })
}

/// The main channel being written.
struct Output<W> {
    main: W,
    room: Vec<u8>,
    written: u64,
    cancel: CancelHandle,
    /// The RAM section's number.
    id: u32,
}

impl<W: Write> Output<W> {
    /// Writes what has been put into the room.
    fn flush(&mut self, what: &'static str) -> Result<(), Error> {
        let bytes = std::mem::take(&mut self.room);
        self.write(&bytes, what)?;
        self.room = bytes;
        self.room.clear();
        Ok(())
    }

    /// Writes bytes that lie elsewhere.
    fn write(&mut self, bytes: &[u8], what: &'static str) -> Result<(), Error> {
        let result = self.main.write_all(bytes).and_then(|()| self.main.flush());
        result.map_err(|cause| match self.cancel.error() {
            // A channel that failed has ended the wait on the main channel.
            Some(first) => first.into(),
            None => Error::Io {
                offset: self.written,
                what,
                cause,
            },
        })?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Queues the pages of a block, but for zero pages, which are named here.
    fn queue_but_zero_pages(
        &mut self,
        sender: &mut Sender,
        index: usize,
        block: &RamBlock,
        told: Option<&dyn ZeroTest>,
    ) -> Result<(), Error> {
        for offset in (0..block.len()).step_by(block.page_size() as usize) {
            let zero = match told {
                Some(told) => told.is_zero(block, offset),
                None => block.page(offset)?.is_zero(),
            };
            if !zero {
                sender.queue_page(index, offset)?;
                continue;
            }
            push_zero_page(&mut self.room, block.name(), offset);
            sender.stats_handle().count_main(0, 1, block.page_size());
            if self.room.len() >= ROOM {
                self.flush("the RAM section")?;
            }
        }
        Ok(())
    }

    /// Ends a part of the RAM section, and the round if it ends here.
    fn end_section(
        &mut self,
        sender: &mut Sender,
        sync: SyncStyle,
        round: bool,
    ) -> Result<(), Error> {
        if round || sync == SyncStyle::EachSection {
            sender.sync(SyncScope::Peer)?;
            if sync == SyncStyle::EachRound {
                push_flush(&mut self.room);
            }
        }
        push_end(&mut self.room);
        push_footer(&mut self.room, self.id);
        self.flush("the RAM section")
    }
}
