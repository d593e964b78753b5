//! A VM in a mapped-ram file: the main channel with gaps, in which every page has its place.

use crate::elements::{Element, Elements, unexpected};
use crate::input::Input;
use crate::output::{
    push_block, push_end, push_footer, push_header, push_ram_more, push_ram_start,
    push_switchover_start, push_total,
};
use crate::ram::{self, Record};
use crate::sections::{CONFIGURATION, END, MAGIC, VERSION, read_footer};
use crate::{BlockInfo, Configuration, Error, Limits, Tail};
use multifd_core::{MemoryBudget, OverBudget};
use multifd_packet::{
    Field, MAPPED_RAM_HEADER_LEN, MappedRamHeader, MappedRamLayout, PacketError, PlacedBlock,
};
use std::io::{self, Read, Seek, Write};

/// What a mapped-ram file holds, apart from the bitmaps and the pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedFile {
    /// Where in the file the migration begins, bytes.
    pub base: u64,
    /// The machine, and what the source had switched on.
    pub configuration: Configuration,
    /// The RAM blocks in their order, which is also that of the file.
    pub blocks: Vec<PlacedBlock>,
    /// The number of the RAM section.
    pub ram_section: u32,
    /// Whether the source said that the guest is stopped.
    pub switchover_start: bool,
    /// The device sections, byte for byte.
    pub tail: Tail,
}

impl MappedFile {
    /// Reads a file whose migration starts at `base`. Neither bitmaps nor pages are read.
    ///
    /// # Errors
    /// [`Error`], as when the file is no migration, was written without the capability
    /// `mapped-ram`, or is not whole.
    pub fn read(
        file: impl Read + Seek,
        base: u64,
        limits: &Limits,
        need_vmdesc: bool,
    ) -> Result<Self, Error> {
        let mut input = Input::new(file, base, None);
        input.seek(base, "the start of the migration")?;
        let magic = input.u32("the magic number")?;
        if magic != MAGIC {
            return Err(Error::NotAMigration {
                offset: base,
                found: magic,
            });
        }
        input.expect_u32("the version", VERSION)?;
        let mut kind = input.u8("the first element")?;
        let mut configuration = Configuration::default();
        if kind == CONFIGURATION {
            (configuration, kind) = Configuration::read(&mut input, limits)?;
        }
        if !configuration.is_mapped_ram() {
            return Err(Error::Refused {
                offset: input.offset(),
                what: "a stream that was saved to a file, which is read in another way".into(),
                advice:
                    "switch the capabilities mapped-ram and multifd on before migrating to a file"
                        .into(),
            });
        }
        let mut elements = Elements::new(kind);
        let mut blocks = None;
        let budget = MemoryBudget::new(limits.tail_bytes.saturating_mul(2));
        let mut held = budget.take("the device sections", 0).map_err(over)?;
        loop {
            match elements.next(&mut input, limits, &mut held)? {
                Element::Ram => {
                    read_body(&mut input, &configuration, limits, &mut blocks)?;
                    read_footer(&mut input, elements.ram_section())?;
                }
                Element::Devices(kind) if elements.ram_has_ended() => {
                    let offset = input.offset().saturating_sub(1);
                    let bytes =
                        input.rest(kind, limits.tail_bytes, "the device sections", &mut held)?;
                    let tail = Tail::new(bytes, offset, need_vmdesc, limits)?;
                    return Ok(Self {
                        base,
                        configuration,
                        blocks: blocks.unwrap_or_default(),
                        ram_section: elements.ram_section(),
                        switchover_start: elements.switchover_start,
                        tail: tail.with_early(elements.early),
                    });
                }
                Element::Devices(kind) => {
                    let offset = input.offset().saturating_sub(1);
                    return Err(unexpected(offset, format!("the element {kind:#04x}")));
                }
            }
        }
    }

    /// Bytes of a guest page.
    pub fn page_size(&self) -> u32 {
        let first = self.blocks.first();
        first
            .and_then(|block| u32::try_from(block.layout.header().page_size).ok())
            .unwrap_or(self.configuration.page_size())
    }

    /// The RAM blocks as the setup list names them.
    pub fn block_infos(&self) -> Vec<BlockInfo> {
        let info = |block: &PlacedBlock| BlockInfo {
            name: block.name.clone(),
            used_length: block.layout.used_length(),
        };
        self.blocks.iter().map(info).collect()
    }

    /// Bytes of guest RAM over all blocks.
    pub fn ram_bytes(&self) -> u64 {
        self.blocks
            .iter()
            .map(|block| block.layout.used_length())
            .sum()
    }
}

/// What cannot happen: nothing is taken yet.
fn over(cause: OverBudget) -> Error {
    Error::Memory { offset: 0, cause }
}

/// Reads the body of a part of the RAM section: the block list, or nothing.
fn read_body<F: Read + Seek>(
    input: &mut Input<F>,
    configuration: &Configuration,
    limits: &Limits,
    blocks: &mut Option<Vec<PlacedBlock>>,
) -> Result<(), Error> {
    loop {
        let offset = input.offset();
        match ram::read_record(input)? {
            Record::Blocks { total } if blocks.is_none() => {
                *blocks = Some(read_blocks(input, total, configuration, limits)?);
            }
            Record::End if blocks.is_some() => return Ok(()),
            other => {
                return Err(Error::Malformed {
                    offset,
                    what: "a record of the RAM section",
                    found: format!("{other:?}"),
                    expected: "one block list, then the section's end: pages have their places"
                        .into(),
                });
            }
        }
    }
}

fn read_blocks<F: Read + Seek>(
    input: &mut Input<F>,
    total: u64,
    configuration: &Configuration,
    limits: &Limits,
) -> Result<Vec<PlacedBlock>, Error> {
    ram::check_total(total, input.offset(), limits)?;
    let mut blocks: Vec<PlacedBlock> = Vec::new();
    let mut left = total;
    while left > 0 {
        ram::check_count(blocks.len(), input.offset(), limits)?;
        let BlockInfo { name, used_length } =
            ram::read_block(input, left, configuration.page_size())?;
        left -= used_length;
        let offset = input.offset();
        let invalid = |cause| Error::Mapped {
            offset,
            block: name.clone(),
            cause,
        };
        let header: [u8; MAPPED_RAM_HEADER_LEN] = input.bytes("a mapped-ram header")?;
        let header = MappedRamHeader::parse(&header).map_err(invalid)?;
        let page_size = u64::from(configuration.page_size());
        if header.page_size != page_size {
            return Err(invalid(PacketError::Mismatch {
                field: Field::PageSize,
                found: header.page_size,
                expected: page_size,
            }));
        }
        if header.bitmap_offset < input.offset() {
            return Err(invalid(PacketError::TooLarge {
                field: Field::BitmapOffset,
                found: input.offset(),
                limit: header.bitmap_offset,
            }));
        }
        let layout = MappedRamLayout::from_header(header, used_length).map_err(invalid)?;
        if blocks.iter().any(|block| block.name == name) {
            return Err(Error::Malformed {
                offset,
                what: "a RAM block's name",
                found: format!("{name:?} a second time"),
                expected: "each block once".into(),
            });
        }
        input.seek(layout.end(), "the end of a RAM block's pages")?;
        blocks.push(PlacedBlock { name, layout });
    }
    Ok(blocks)
}

/// Writes a mapped-ram file around the bitmaps and pages, which are another's to write.
#[derive(Debug)]
pub struct MappedWriter<F> {
    file: F,
    at: u64,
    ram_section: u32,
}

impl<F: Write + Seek> MappedWriter<F> {
    /// Writes everything up to the end of the block list, the migration starting at `base`, and
    /// says where each block's bitmap and pages go; a page has `page_size` bytes.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Mapped`] for blocks that do not fit a file.
    pub fn start(
        file: F,
        base: u64,
        configuration: &Configuration,
        page_size: u32,
        ram_section: u32,
        blocks: &[BlockInfo],
    ) -> Result<(Self, Vec<PlacedBlock>), Error> {
        let mut writer = Self {
            file,
            at: base,
            ram_section,
        };
        let mut room = Vec::new();
        push_header(&mut room);
        configuration.with_mapped_ram(true).write(&mut room);
        push_ram_start(&mut room, ram_section);
        push_total(
            &mut room,
            blocks.iter().map(|block| block.used_length).sum(),
        );
        let mut placed = Vec::with_capacity(blocks.len());
        for BlockInfo { name, used_length } in blocks {
            push_block(&mut room, name, *used_length);
            let offset = writer.at + room.len() as u64;
            let invalid = |cause| Error::Mapped {
                offset,
                block: name.clone(),
                cause,
            };
            let layout =
                MappedRamLayout::place(offset, *used_length, page_size).map_err(invalid)?;
            let mut header = [0; MAPPED_RAM_HEADER_LEN];
            layout.header().encode(&mut header).map_err(invalid)?;
            room.extend(header);
            writer.put(&room)?;
            room.clear();
            writer.at = layout.end();
            placed.push(PlacedBlock {
                name: name.clone(),
                layout,
            });
        }
        push_end(&mut room);
        push_footer(&mut room, ram_section);
        writer.put(&room)?;
        Ok((writer, placed))
    }

    /// Writes the device sections, those that come before the RAM's end and those after it, and
    /// returns the file.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn finish(mut self, switchover_start: bool, tail: &Tail) -> Result<F, Error> {
        self.put(tail.early())?;
        let mut room = Vec::new();
        if switchover_start {
            push_switchover_start(&mut room);
        }
        push_ram_more(&mut room, END, self.ram_section);
        push_end(&mut room);
        push_footer(&mut room, self.ram_section);
        self.put(&room)?;
        self.put(tail.bytes())?;
        Ok(self.file)
    }

    /// Writes `bytes` where the channel has come to.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let at = io::SeekFrom::Start(self.at);
        let result = self.file.seek(at).and_then(|_| self.file.write_all(bytes));
        result.map_err(|cause| Error::File {
            offset: self.at,
            cause,
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}
