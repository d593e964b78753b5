//! A migration being received: the main channel read, its rounds joined with those of the channels.

use crate::elements::{Element, Elements, unexpected};
use crate::guest_ram::GuestRam;
use crate::input::Input;
use crate::ram::{self, Record};
use crate::ram_sink::{Announced, RamSink};
use crate::sections::{CONFIGURATION, read_footer, read_header};
use crate::{
    BlockInfo, Configuration, Error, ReceiveOptions, Received, Snapshot, Started, SyncStyle, Tail,
};
use multifd_core::packet::Compression;
use multifd_core::{ChannelSource, Gathering, HeldMemory, Method, Receiver, StatsHandle, event};
use std::io::Read;
use std::sync::Arc;

/// Bytes a RAM block takes beside its name, here and in the engine.
const BLOCK: usize = 1024;

/// A migration that is being received.
pub(crate) struct Reception<'a, R> {
    input: Input<R>,
    source: &'a mut dyn ChannelSource,
    options: ReceiveOptions,
    configuration: Configuration,
    receiver: Option<Receiver>,
    sink: Box<dyn RamSink>,
    blocks: Vec<BlockInfo>,
    /// Known from the first section's end on: whether a flush came before it.
    sync: Option<SyncStyle>,
    gathered: bool,
    rounds: u64,
    /// The block of the last page of the main channel.
    last_block: Option<usize>,
    /// A page of the main channel on its way.
    page: Vec<u8>,
    /// Where its pages are counted.
    stats: Option<StatsHandle>,
    /// The source has no channels.
    over_main: bool,
    /// What the list of RAM blocks takes.
    names: Option<HeldMemory>,
}

impl<'a, R: Read> Reception<'a, R> {
    pub(crate) fn new(
        main: R,
        source: &'a mut dyn ChannelSource,
        mut options: ReceiveOptions,
    ) -> Self {
        let progress = Arc::clone(&options.engine.common.progress);
        let sink = options
            .sink
            .take()
            .unwrap_or_else(|| Box::new(GuestRam::new(options.memory.take(), options.huge_pages)));
        Self {
            input: Input::new(main, 0, Some(progress)),
            source,
            options,
            configuration: Configuration::default(),
            receiver: None,
            sink,
            blocks: Vec::new(),
            sync: None,
            gathered: false,
            rounds: 0,
            last_block: None,
            page: Vec::new(),
            stats: None,
            over_main: false,
            names: None,
        }
    }

    pub(crate) fn run(&mut self) -> Result<Received, Error> {
        read_header(&mut self.input)?;
        let mut kind = self.input.u8("the first element")?;
        if kind == CONFIGURATION {
            (self.configuration, kind) =
                Configuration::read(&mut self.input, &self.options.limits)?;
        }
        self.check_capabilities()?;
        let mut elements = Elements::new(kind);
        let mut held = self
            .options
            .engine
            .memory_budget
            .take("the device sections", 0)
            .map_err(|cause| {
                let offset = self.input.offset();
                Error::Memory { offset, cause }
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
        let (ram, zero_pages) = self.sink.finish()?;
        Ok(Received {
            snapshot: Snapshot {
                configuration: self.configuration.with_mapped_ram(false),
                uuid,
                ram,
                zero_pages,
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
            (
                "x-ignore-shared",
                "switch the x-ignore-shared capability off",
            ),
        ] {
            if self.configuration.capabilities().iter().any(|c| c == name) {
                return Err(Error::Refused {
                    offset: self.input.offset(),
                    what: format!(
                        "a migration with the capability {name:?}, which is not supported"
                    ),
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
                Record::Blocks { total } if self.receiver.is_none() => self.set_up(total, id)?,
                Record::Blocks { .. } => {
                    return Err(unexpected(offset, "a second block list".into()));
                }
                Record::Page {
                    address,
                    zero,
                    same_block,
                } => {
                    let record = (address, zero, same_block);
                    let page_size = self.configuration.page_size();
                    let known = (self.blocks.as_slice(), page_size);
                    let last = (&mut self.last_block, &mut self.page);
                    let sink = self.sink.as_mut();
                    ram::read_page(&mut self.input, known, record, last, sink)?;
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

    fn set_up(&mut self, total: u64, ram_section: u32) -> Result<(), Error> {
        let limits = self.options.limits;
        let page_size = self.configuration.page_size();
        let blocks = ram::read_blocks(&mut self.input, total, page_size, &limits)?;
        if let Some(check) = self.options.check.take() {
            check(&blocks).map_err(Error::Declined)?;
        }
        let names = blocks
            .iter()
            .map(|info| (info.name.len() + BLOCK) as u64)
            .sum();
        let over = |cause| Error::Memory {
            offset: self.input.offset(),
            cause,
        };
        let names = self
            .options
            .engine
            .memory_budget
            .take("the RAM blocks' names", names)
            .map_err(over)?;
        self.names = Some(names);
        let mut config = self.options.engine.clone();
        config.uuid = config.uuid.or(self.configuration.uuid());
        if let Some(channels) = self.options.channels {
            config.max_channels = config.max_channels.min(channels.into());
        }
        let destination = self.sink.start(&Announced {
            configuration: &self.configuration,
            ram_section,
            blocks: &blocks,
            page_size,
            common: &config.common,
        })?;
        let receiver = Receiver::new(destination, config)?;
        self.blocks.clone_from(&blocks);
        event!(blocks = blocks.len(), page_size, "RAM blocks announced");
        let receiver = self.receiver.insert(receiver);
        self.stats = Some(receiver.stats_handle());
        if let Some(on_start) = self.options.on_start.take() {
            on_start(Started {
                stats: receiver.stats_handle(),
                blocks,
            });
        }
        Ok(())
    }

    /// Takes in every channel there is. All have connected before the source speaks of a first
    /// round.
    fn gather(&mut self) -> Result<(), Error> {
        let expected = self.options.channels.map(usize::from);
        let Some(receiver) = &mut self.receiver else {
            return Ok(());
        };
        receiver.attach_all(self.source, expected, Gathering::Due)?;
        if expected.is_some() {
            // The first round would never end if there were more.
            receiver.refuse_late(self.source)?;
        }
        if receiver.channels() == 0 {
            // A source that syncs each section says nothing of it, and neither does one that has no
            // channels at all.
            if self.sync == Some(SyncStyle::EachSection) {
                self.check_without_channels()?;
                self.over_main = true;
                event!(
                    "the source has no multifd channels: all of its RAM comes over the main one"
                );
                return Ok(());
            }
            return Err(Error::Refused {
                offset: self.input.offset(),
                what: "no multifd connections".into(),
                advice: "switch the multifd capability on, on the source".into(),
            });
        }
        Ok(())
    }

    /// Refuses a source without channels where something was asked for that only channels can show.
    fn check_without_channels(&self) -> Result<(), Error> {
        let options = &self.options.engine;
        let plain = |method: &Arc<dyn Method>| method.kind() == Compression::None;
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
        if let Some(receiver) = &self.receiver {
            receiver.refuse_late(self.source)?;
        }
        Ok(tail)
    }
}
