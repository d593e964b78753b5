//! The destination of a migration: the main channel read, its rounds joined with those of the multifd channels.

use crate::elements::{Element, Elements, unexpected};
use crate::input::Input;
use crate::ram::{self, Record};
use crate::sections::{CONFIGURATION, read_footer, read_header};
use crate::{BlockInfo, Configuration, Error, Limits, Snapshot, Started, SyncStyle, Tail};
use multifd_core::{
    BlockError, CancelHandle, ChannelError, ChannelSource, DeviceStateSink, Error as EngineError, HeldMemory,
    MemoryBudget, Method, Progress, RamBlock, RamMap, Receiver, ReceiverConfig, Stats, StatsHandle,
};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

/// Makes the memory of a RAM block, given its page size in bytes.
pub type MakeMemory = Box<dyn FnMut(&BlockInfo, u32) -> Result<RamBlock, BlockError> + Send>;

/// Bytes a RAM block takes beside its name, here and in the engine.
const BLOCK: usize = 1024;

/// Says why a VM with these RAM blocks is not wanted, if it is not.
pub type CheckBlocks = Box<dyn FnOnce(&[BlockInfo]) -> Result<(), String> + Send>;

/// How to receive.
pub struct ReceiveOptions {
    /// Methods that may be decoded; which one is used, the stream says. Empty means no compression only.
    pub methods: Vec<Arc<dyn Method>>,
    /// How many channels there must be; without it, those that have connected when the first round ends.
    pub channels: Option<u8>,
    /// The only UUID accepted on channels; without it, that of the main channel, or else one they all agree on.
    pub uuid: Option<[u8; 16]>,
    /// How much the source may ask for.
    pub limits: Limits,
    /// What the device sections are counted in. Give the same to methods whose decoders take much.
    pub memory_budget: MemoryBudget,
    /// Whether the description at the end must be there (see [`Tail::new`]).
    pub need_vmdesc: bool,
    /// The clock of all connections: when nothing has come on any of them for its deadline, that is a stall.
    pub progress: Arc<Progress>,
    /// Ends the migration from elsewhere. Register the main connection with it, and the listener, so that a channel's
    /// failure ends a wait on them.
    pub cancel: CancelHandle,
    /// Makes the memory of each RAM block, `page_size` bytes a page: a VMM's own. It must read as zeros, and nobody else may
    /// write to it before all has been received. Without it, blocks
    /// are private anonymous memory.
    pub memory: Option<MakeMemory>,
    /// Whether every packet must carry a checksum; those that do are checked in any case.
    pub require_checksums: bool,
    /// Who takes device state that comes over multifd channels; without one it is refused.
    pub device_state: Option<Arc<dyn DeviceStateSink>>,
    /// Called once, when the RAM blocks are known, before anything is received: says why they are
    /// not wanted, if they are not.
    pub check: Option<CheckBlocks>,
    /// Called once, when the RAM blocks are known.
    pub on_start: Option<Box<dyn FnOnce(Started) + Send>>,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self {
            methods: Vec::new(),
            channels: None,
            uuid: None,
            limits: Limits::default(),
            memory_budget: MemoryBudget::default(),
            need_vmdesc: true,
            progress: Arc::new(Progress::new(Duration::from_secs(30))),
            cancel: CancelHandle::default(),
            memory: None,
            require_checksums: false,
            device_state: None,
            check: None,
            on_start: None,
        }
    }
}

impl std::fmt::Debug for ReceiveOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveOptions")
            .field("channels", &self.channels)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A migration that has arrived whole.
#[derive(Debug)]
pub struct Received {
    /// The VM.
    pub snapshot: Snapshot,
    /// What came over the channels, each and all.
    pub stats: Stats,
    /// Bytes of the main channel.
    pub main_bytes: u64,
    /// Rounds joined.
    pub rounds: u64,
    /// How the source syncs.
    pub sync: SyncStyle,
    /// The compression methods of the packets with contents; none at all if every page was zero.
    pub methods: Vec<multifd_packet::Method>,
    /// Whether the source had no channels: all pages came over the main connection.
    pub over_main: bool,
}

/// Receives a migration: reads `main` to its end, takes channels from `source`, and returns when all of the VM is in place
/// and every channel has ended as it should.
///
/// # Errors
/// [`Error`]: the first thing that went wrong, on any channel. All threads are gone then.
pub fn receive(
    main: impl Read,
    source: &mut dyn ChannelSource,
    options: ReceiveOptions,
) -> Result<Received, Error> {
    let cancel = options.cancel.clone();
    let mut reception = Reception {
        input: Input::new(main, 0, Some(Arc::clone(&options.progress))),
        source,
        options,
        configuration: Configuration::default(),
        receiver: None,
        ram: RamMap::new(),
        sync: None,
        gathered: false,
        rounds: 0,
        last_block: None,
        page: Vec::new(),
        stats: None,
        over_main: false,
        names: None,
    };
    // The engine still lives when its first error is looked for: it cancels itself when it is dropped.
    reception.run().map_err(|error| match cancel.error() {
        Some(first) if can_follow(&error) => first.into(),
        _ => error,
    })
}

/// Whether an error can be what came of another: whatever ends a transfer also ends its waits on the main channel, and on channels
/// to come.
fn can_follow(error: &Error) -> bool {
    let stopped = |source: &ChannelError| matches!(source, ChannelError::Stopped);
    match error {
        Error::Io { .. } | Error::Truncated { .. } | Error::Stalled { .. } => true,
        Error::Engine(EngineError::Channel { source, .. }) => stopped(source),
        _ => false,
    }
}

/// Reads the first elements of a main channel, up to the machine's configuration and one byte more: for whoever passes the
/// channel on and has to know the page size.
///
/// # Errors
/// [`Error`]: if it is no main channel.
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

struct Reception<'a, R> {
    input: Input<R>,
    source: &'a mut dyn ChannelSource,
    options: ReceiveOptions,
    configuration: Configuration,
    receiver: Option<Receiver>,
    ram: RamMap,
    /// Known from the first section's end on: whether a flush came before it.
    sync: Option<SyncStyle>,
    gathered: bool,
    rounds: u64,
    last_block: Option<String>,
    /// A page of the main channel on its way.
    page: Vec<u8>,
    /// Where its pages are counted.
    stats: Option<StatsHandle>,
    /// The source has no channels.
    over_main: bool,
    /// What the list of RAM blocks takes.
    names: Option<HeldMemory>,
}

impl<R: Read> Reception<'_, R> {
    fn run(&mut self) -> Result<Received, Error> {
        read_header(&mut self.input)?;
        let mut kind = self.input.u8("the first element")?;
        if kind == CONFIGURATION {
            (self.configuration, kind) = Configuration::read(&mut self.input, &self.options.limits)?;
        }
        self.check_capabilities()?;
        let mut elements = Elements::new(kind);
        let mut held = self
            .options
            .memory_budget
            .take("the device sections", 0)
            .map_err(|source| {
                let offset = self.input.offset();
                Error::Memory { offset, source }
            })?;
        let first = loop {
            match elements.next(&mut self.input, &self.options.limits, &mut held)? {
                Element::Ram => self.section(elements.ram_section())?,
                // Only where QEMU saves a background snapshot has the RAM no end, and then there
                // are no channels.
                Element::Devices(kind) if elements.ram_has_ended() || self.over_main => {
                    break kind;
                }
                Element::Devices(kind) => {
                    let offset = self.input.offset().saturating_sub(1);
                    return Err(unexpected(offset, format!("the element {kind:#04x}")));
                }
            }
        };
        let tail = self
            .tail(first, &mut held)?
            .with_early(std::mem::take(&mut elements.early));
        if self.over_main
            && self
                .stats
                .as_ref()
                .is_none_or(|stats| stats.read().main.normal_pages == 0)
        {
            // A source without channels sends all of RAM here, firmware at least; one with channels
            // names zero pages at most: its channels must have come late.
            return Err(Error::Refused {
                offset: self.input.offset(),
                what: "no multifd connections and no pages either".into(),
                advice: "see that multifd connections reach this listener".into(),
            });
        }
        let receiver = self.receiver.take();
        let (methods, uuid, stats) = match receiver {
            Some(receiver) => {
                let (methods, uuid) = (receiver.methods(), receiver.uuid());
                (methods, uuid.unwrap_or_default(), receiver.finish()?)
            }
            None => return Err(unexpected(0, "a migration without RAM blocks".into())),
        };
        for block in self.ram.blocks() {
            block.forget_zeros();
        }
        Ok(Received {
            snapshot: Snapshot {
                configuration: self.configuration.with_mapped_ram(false),
                uuid,
                ram: self.ram.clone(),
                ram_section: elements.ram_section(),
                switchover_start: elements.switchover_start,
                tail,
            },
            stats,
            main_bytes: self.input.offset(),
            rounds: self.rounds,
            sync: self.sync.unwrap_or(SyncStyle::EachRound),
            methods,
            over_main: self.over_main,
        })
    }

    /// Refuses what changes the stream in ways we do not follow.
    fn check_capabilities(&self) -> Result<(), Error> {
        for (name, advice) in [
            (
                "mapped-ram",
                "migrate to a file, or switch the mapped-ram capability off",
            ),
            ("x-ignore-shared", "switch the x-ignore-shared capability off"),
        ] {
            if self.configuration.capabilities().iter().any(|c| c == name) {
                return Err(Error::Refused {
                    offset: self.input.offset(),
                    what: format!("with the capability {name:?}"),
                    advice: advice.into(),
                });
            }
        }
        Ok(())
    }

    /// Reads the body and the footer of a part of the RAM section.
    fn section(&mut self, id: u32) -> Result<(), Error> {
        let mut flushed = false;
        loop {
            let offset = self.input.offset();
            match ram::read_record(&mut self.input)? {
                Record::Blocks { total } if self.receiver.is_none() => self.set_up(total)?,
                Record::Blocks { .. } => return Err(unexpected(offset, "a second block list".into())),
                Record::Page {
                    address,
                    zero,
                    same_block,
                } => {
                    let record = (address, zero, same_block);
                    let last = (&mut self.last_block, &mut self.page);
                    let page_size = ram::read_page(&mut self.input, &self.ram, record, last)?;
                    if let Some(stats) = &self.stats {
                        stats.count_main(u64::from(!zero), u64::from(zero), page_size);
                    }
                }
                Record::Flush if self.receiver.is_none() => {
                    return Err(unexpected(offset, "a flush before the block list".into()));
                }
                Record::Flush => {
                    self.join_round()?;
                    flushed = true;
                }
                Record::End => break,
            }
        }
        if self.receiver.is_none() {
            return Err(unexpected(
                self.input.offset(),
                "a RAM section without a block list".into(),
            ));
        }
        // A modern source flushes in its setup already.
        let style = if flushed {
            SyncStyle::EachRound
        } else {
            SyncStyle::EachSection
        };
        if *self.sync.get_or_insert(style) == SyncStyle::EachSection {
            self.join_round()?;
        }
        read_footer(&mut self.input, id)
    }

    fn set_up(&mut self, total: u64) -> Result<(), Error> {
        let limits = self.options.limits;
        let page_size = self.configuration.page_size();
        let blocks = ram::read_blocks(&mut self.input, total, page_size, &limits)?;
        if let Some(check) = self.options.check.take() {
            check(&blocks).map_err(Error::Declined)?;
        }
        let names = blocks.iter().map(|info| (info.name.len() + BLOCK) as u64).sum();
        let over = |source| Error::Memory {
            offset: self.input.offset(),
            source,
        };
        let names = self
            .options
            .memory_budget
            .take("the RAM blocks' names", names)
            .map_err(over)?;
        self.names = Some(names);
        for info in &blocks {
            let block = match &mut self.options.memory {
                Some(memory) => memory(info, page_size)?,
                None => RamBlock::anonymous(&info.name, info.used_length, page_size)?,
            };
            if block.name() != info.name || block.len() != info.used_length {
                return Err(Error::Block(BlockError::Map {
                    block: info.name.clone(),
                    reason: "the memory made for it has another name or length",
                }));
            }
            // That it reads as zeros is what we ask of whoever makes it.
            self.ram.add(block.with_known_zeros())?;
        }
        let config = ReceiverConfig {
            methods: self.options.methods.clone(),
            uuid: self.options.uuid.or(self.configuration.uuid()),
            max_channels: self.options.channels.map_or(255, usize::from),
            progress: Arc::clone(&self.options.progress),
            cancel: self.options.cancel.clone(),
            require_checksums: self.options.require_checksums,
            device_state: self.options.device_state.clone(),
            memory_budget: self.options.memory_budget.clone(),
            ..ReceiverConfig::default()
        };
        let receiver = self.receiver.insert(Receiver::new(self.ram.clone(), config)?);
        self.stats = Some(receiver.stats_handle());
        if let Some(on_start) = self.options.on_start.take() {
            on_start(Started {
                stats: receiver.stats_handle(),
                blocks,
            });
        }
        Ok(())
    }

    /// Takes in every channel there is. All have connected before the source speaks of a first round.
    fn gather(&mut self) -> Result<(), Error> {
        let expected = self.options.channels.map(usize::from);
        let Some(receiver) = &mut self.receiver else {
            return Ok(());
        };
        let failed = |channel: usize, source: ChannelError| {
            Error::Engine(EngineError::Channel {
                channel: u8::try_from(channel).unwrap_or(u8::MAX),
                doing: "accepting",
                source,
            })
        };
        loop {
            let have = receiver.channels();
            if expected == Some(have) {
                break;
            }
            let next = match expected {
                Some(_) => self.source.due_channel(),
                None => self.source.next_channel(false),
            };
            match next.map_err(|e| failed(have, e))? {
                Some(channel) => receiver.attach(channel)?,
                None => match expected {
                    Some(expected) => {
                        return Err(Error::Engine(EngineError::ChannelCount {
                            found: have,
                            expected,
                        }));
                    }
                    None => break,
                },
            }
        }
        if expected.is_some() {
            // The first round would never end if there were more.
            no_late_channel(self.source, receiver.channels())?;
        }
        if receiver.channels() == 0 {
            // A source that syncs each section says nothing of it, and neither does one that has no
            // channels at all.
            if self.sync == Some(SyncStyle::EachSection) {
                self.check_without_channels()?;
                self.over_main = true;
                return Ok(());
            }
            return Err(Error::Refused {
                offset: self.input.offset(),
                what: "no multifd connections".into(),
                advice: "switch the multifd capability on, on the source".into(),
            });
        }
        receiver.wait_identified()?;
        Ok(())
    }

    /// Refuses a source without channels where something was asked for that only channels can show.
    fn check_without_channels(&self) -> Result<(), Error> {
        let options = &self.options;
        let plain = |method: &Arc<dyn Method>| method.kind() == multifd_packet::Method::None;
        let missed = if options.require_checksums {
            "checksums, which were asked for"
        } else if options.uuid.is_some() && options.uuid != self.configuration.uuid() {
            "the UUID that was asked for"
        } else if !options.methods.is_empty() && !options.methods.iter().any(plain) {
            "the compression that was asked for"
        } else {
            return Ok(());
        };
        Err(Error::Refused {
            offset: self.input.offset(),
            what: format!("no multifd connections, and so not {missed}"),
            advice: "switch the multifd capability on, on the source".into(),
        })
    }

    fn join_round(&mut self) -> Result<(), Error> {
        if !self.gathered {
            self.gather()?;
            self.gathered = true;
            if !self.over_main {
                self.input.let_channels_speak();
            }
        }
        if let Some(receiver) = self.receiver.as_ref().filter(|_| !self.over_main) {
            receiver.wait_sync()?;
            self.rounds += 1;
        }
        Ok(())
    }

    /// Reads everything after the RAM, and makes sure that nobody came late.
    fn tail(&mut self, first: u8, held: &mut HeldMemory) -> Result<Tail, Error> {
        let offset = self.input.offset().saturating_sub(1);
        let limits = &self.options.limits;
        let bytes = self
            .input
            .rest(first, limits.tail_bytes, "the device sections", held)?;
        let tail = Tail::new(bytes, offset, self.options.need_vmdesc, limits)?;
        if self.options.channels.is_none()
            && let Some(receiver) = &self.receiver
        {
            // How many channels there are was only a guess; this tells.
            receiver.check_numbers()?;
        }
        no_late_channel(self.source, self.receiver.as_ref().map_or(0, Receiver::channels))?;
        Ok(tail)
    }
}

/// Makes sure that no channel has come beyond those that are known.
fn no_late_channel(source: &mut dyn ChannelSource, have: usize) -> Result<(), Error> {
    let late = source.late_channel().map_err(|source| {
        Error::Engine(EngineError::Channel {
            channel: u8::try_from(have).unwrap_or(u8::MAX),
            doing: "accepting",
            source,
        })
    })?;
    match late {
        Some(_) => Err(Error::Engine(EngineError::ChannelCount {
            found: have + 1,
            expected: have,
        })),
        None => Ok(()),
    }
}
