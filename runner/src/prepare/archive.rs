//! Unpacks an uploaded zip or gzipped tar that may be hostile.
//!
//! Not here: the path rules ([`super::unpack`]), and what is started from the unpacked tree.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use wire::ErrorCode;
use wire::spec::ArchiveFormat;

use super::error::{Doing, PrepareError};
use super::tree::Limits;
use super::unpack::{Unpack, damaged, rejected};

/// Entries that an archive may have.
const MAX_ENTRIES: u64 = 20_000;
/// Deflate reaches 1,032; real sources stay below 30.
const MAX_RATIO: u64 = 200;
/// Small archives of repetitive text may exceed the ratio.
const RATIO_FROM: u64 = 16 << 20;
const MAX_LINK_BYTES: u64 = 4096;
/// A tar entry that only describes the next one is read whole into memory. Real ones are below 4 KiB.
const MAX_DESCRIPTION: u64 = 64 << 10;

/// Unpacks `blob` into `root` and answers where the project is: `root`, or the single folder in it.
pub(crate) fn unpack(
    blob: &Path,
    format: ArchiveFormat,
    root: &Path,
    limits: Limits,
) -> Result<PathBuf, PrepareError> {
    let file = File::open(blob).doing("reading the archive")?;
    let packed = file.metadata().doing("reading the archive")?.len();
    let bytes = limits.bytes.min(packed.saturating_mul(MAX_RATIO).max(RATIO_FROM));
    let over = if bytes < limits.bytes { ErrorCode::ArchiveRejected } else { ErrorCode::TooBig };
    let mut out = Unpack::into(root, Limits { bytes, files: MAX_ENTRIES }, over)?;
    match format {
        ArchiveFormat::Zip => zip_entries(file, &mut out)?,
        ArchiveFormat::TarGz => tar_entries(file, bytes, &mut out)?,
    }
    out.finish()?;
    project_root(root)
}

fn zip_entries(file: File, out: &mut Unpack) -> Result<(), PrepareError> {
    let broken = |e: zip::result::ZipError| rejected(format!("it is no readable zip ({e})"));
    let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    if zip.has_duplicate_names() {
        return Err(rejected("two entries have the same name".into()));
    }
    if zip.len() as u64 > MAX_ENTRIES {
        return Err(rejected(format!("it has more than {MAX_ENTRIES} entries")));
    }
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(broken)?;
        let name = std::str::from_utf8(entry.name_raw())
            .map_err(|_| rejected("a file name is not UTF-8".into()))?
            .to_owned();
        const TYPE: u32 = 0o170_000;
        let mode = entry.unix_mode().unwrap_or(0);
        match mode & TYPE {
            _ if name.ends_with('/') => out.dir(&name)?,
            0o120_000 => {
                let mut target = String::new();
                entry.by_ref().take(MAX_LINK_BYTES).read_to_string(&mut target).map_err(|e| damaged(&e))?;
                out.link(&name, &target)?;
            }
            0o040_000 => out.dir(&name)?,
            0 | 0o100_000 => out.file(&name, mode & 0o111 != 0, &mut entry)?,
            _ => return Err(rejected(format!("`{name}` is neither file, folder nor link"))),
        }
    }
    Ok(())
}

fn tar_entries(mut file: File, limit: u64, out: &mut Unpack) -> Result<(), PrepareError> {
    check_descriptions(&file, limit)?;
    file.rewind().doing("reading the archive")?;
    let mut tar = open_tar(file, limit);
    for entry in tar.entries().map_err(|e| damaged(&e))? {
        let mut entry = entry.map_err(|e| damaged(&e))?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let name = String::from_utf8(entry.path_bytes().into_owned())
            .map_err(|_| rejected("a file name is not UTF-8".into()))?;
        if kind.is_dir() {
            out.dir(&name)?;
        } else if kind.is_symlink() {
            let target = entry.link_name_bytes().map(|bytes| String::from_utf8(bytes.into_owned()));
            let Some(Ok(target)) = target else {
                return Err(rejected(format!("the link `{name}` has no readable target")));
            };
            out.link(&name, &target)?;
        } else if kind.is_file() || kind.is_contiguous() {
            let runs = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
            out.file(&name, runs, &mut entry)?;
        } else {
            return Err(rejected(format!("`{name}` is a hard link, device or other special entry")));
        }
    }
    Ok(())
}

fn open_tar<R: Read>(file: R, limit: u64) -> tar::Archive<impl Read> {
    let inflated = flate2::read::GzDecoder::new(BufReader::new(file));
    // Headers and padding are bytes too: a tar of endless empty entries is a bomb as well.
    let overhead = MAX_ENTRIES * 2048;
    tar::Archive::new(Bounded { inner: inflated, left: limit + overhead })
}

/// A pass before the real one, because the library reads long names and pax headers of any size into memory.
fn check_descriptions(file: &File, limit: u64) -> Result<(), PrepareError> {
    let mut tar = open_tar(file, limit);
    let mut sizes = Vec::new();
    for entry in tar.entries().map_err(|e| damaged(&e))?.raw(true) {
        let mut entry = entry.map_err(|e| damaged(&e))?;
        let kind = entry.header().entry_type();
        let is_pax = kind.is_pax_local_extensions() || kind.is_pax_global_extensions();
        if is_pax || kind.is_gnu_longname() || kind.is_gnu_longlink() {
            if entry.size() > MAX_DESCRIPTION {
                return Err(rejected("a long name or extended header is over 64 KiB".into()));
            }
            if kind.is_pax_local_extensions() {
                let mut text = Vec::new();
                entry.read_to_end(&mut text).map_err(|e| damaged(&e))?;
                sizes.extend(pax_sizes(&text)?);
            }
        } else if kind.is_gnu_sparse() {
            // Its list of holes is read into memory too, and the real pass refuses it anyway.
            return Err(rejected("it has a sparse file".into()));
        } else if std::mem::take(&mut sizes).iter().any(|&size| size != entry.size()) {
            // The real pass would go on at another place than this one, past what was checked.
            return Err(rejected("an entry has two sizes".into()));
        }
    }
    Ok(())
}

/// The sizes that an extended header gives to the next entry.
fn pax_sizes(text: &[u8]) -> Result<Vec<u64>, PrepareError> {
    let unreadable = || rejected("an extended header is not readable".into());
    let mut sizes = Vec::new();
    for record in tar::PaxExtensions::new(text) {
        let record = record.map_err(|e| damaged(&e))?;
        if record.key_bytes() == b"size" {
            let size = record.value().ok().and_then(|value| value.parse().ok());
            sizes.push(size.ok_or_else(unreadable)?);
        }
    }
    Ok(sizes)
}

/// Fails instead of ending when more than `left` bytes come.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left =
            self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other("it unpacks to too much"))?;
        Ok(n)
    }
}

/// An archive of one folder means that folder, unless the folder is the project's own `src`.
fn project_root(root: &Path) -> Result<PathBuf, PrepareError> {
    let mut only = None;
    for entry in root.read_dir().doing("reading the unpacked tree")? {
        let entry = entry.doing("reading the unpacked tree")?;
        if entry.file_name() == "__MACOSX" {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_dir || only.replace(entry.path()).is_some() {
            return Ok(root.to_owned());
        }
    }
    match only {
        Some(dir)
            if dir.file_name().is_some_and(|name| name != "src" && name != "dist" && name != "build") =>
        {
            Ok(dir)
        }
        Some(_) => Ok(root.to_owned()),
        None => Err(rejected("it is empty".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;
    use zip::write::SimpleFileOptions;

    use super::*;

    const ROOMY: Limits = Limits { bytes: 64 << 20, files: 1000 };

    fn tar_gz(build: impl FnOnce(&mut tar::Builder<GzEncoder<Vec<u8>>>)) -> Vec<u8> {
        packed(flate2::Compression::default(), build)
    }

    fn packed(
        level: flate2::Compression,
        build: impl FnOnce(&mut tar::Builder<GzEncoder<Vec<u8>>>),
    ) -> Vec<u8> {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), level));
        build(&mut builder);
        builder.into_inner().unwrap().finish().unwrap()
    }

    /// Writes the raw name: the library's own setters refuse hostile ones.
    fn entry(
        builder: &mut tar::Builder<GzEncoder<Vec<u8>>>,
        name: &str,
        kind: tar::EntryType,
        link: &str,
        data: &[u8],
    ) {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }

    fn run(bytes: &[u8], format: ArchiveFormat) -> (tempfile::TempDir, Result<PathBuf, PrepareError>) {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("blob");
        std::fs::write(&blob, bytes).unwrap();
        let result = unpack(&blob, format, &dir.path().join("out/root"), ROOMY);
        (dir, result)
    }

    fn assert_rejected(bytes: &[u8], format: ArchiveFormat, what: &str) {
        let (dir, result) = run(bytes, format);
        assert_eq!(result.unwrap_err().code(), ErrorCode::ArchiveRejected, "{what}");
        let outside: Vec<_> = dir.path().join("out").read_dir().unwrap().flatten().collect();
        assert_eq!(outside.len(), 1, "{what}: something was written beside the root");
    }

    #[test]
    fn hostile_tars_are_refused() {
        use tar::EntryType as Type;
        let cases: [(&str, &str, Type, &str); 9] = [
            ("climbs", "../evil", Type::Regular, ""),
            ("climbs inside", "a/../../evil", Type::Regular, ""),
            ("absolute", "/tmp/claudemesh-evil", Type::Regular, ""),
            ("link out", "l", Type::Symlink, "../../evil"),
            ("absolute link", "l", Type::Symlink, "/etc/passwd"),
            ("hard link", "l", Type::Link, "/etc/passwd"),
            ("character device", "d", Type::Char, ""),
            ("block device", "d", Type::Block, ""),
            ("pipe", "d", Type::Fifo, ""),
        ];
        for (what, name, kind, link) in cases {
            let bytes = tar_gz(|b| entry(b, name, kind, link, b""));
            assert_rejected(&bytes, ArchiveFormat::TarGz, what);
        }
    }

    #[test]
    fn a_tar_that_writes_through_its_own_link_is_refused() {
        let bytes = tar_gz(|b| {
            entry(b, "dir", tar::EntryType::Symlink, "elsewhere", b"");
            entry(b, "dir/evil", tar::EntryType::Regular, "", b"x");
        });
        assert_rejected(&bytes, ArchiveFormat::TarGz, "link then write");
    }

    #[test]
    fn bombs_are_stopped_by_size_and_by_count() {
        let zeros = vec![0; 17 << 20];
        let bytes = tar_gz(|b| entry(b, "zeros", tar::EntryType::Regular, "", &zeros));
        assert!((bytes.len() as u64) * MAX_RATIO < zeros.len() as u64, "the case must exceed the ratio");
        assert_rejected(&bytes, ArchiveFormat::TarGz, "ratio");
        let bytes = packed(flate2::Compression::none(), |b| {
            (0..=MAX_ENTRIES).for_each(|n| entry(b, &format!("f{n}"), tar::EntryType::Regular, "", b""));
        });
        assert_rejected(&bytes, ArchiveFormat::TarGz, "count");
    }

    #[test]
    fn a_tar_whose_descriptions_would_fill_the_memory_is_refused() {
        use tar::EntryType as Type;
        let (level, name) = (flate2::Compression::none(), vec![b'n'; 2 << 20]);
        for kind in [Type::GNULongName, Type::GNULongLink, Type::XHeader, Type::XGlobalHeader] {
            let bytes = packed(level, |b| {
                entry(b, "long", kind, "", &name);
                entry(b, "f", Type::Regular, "", b"");
            });
            let (_dir, result) = run(&bytes, ArchiveFormat::TarGz);
            let error = result.unwrap_err();
            assert_eq!(error.code(), ErrorCode::ArchiveRejected, "{kind:?}");
            assert!(error.to_string().contains("over 64 KiB"), "{kind:?}: {error}");
        }
    }

    #[test]
    fn a_tar_can_not_hide_a_description_behind_a_second_size() {
        use tar::EntryType as Type;
        let mut hidden = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(Type::GNULongName);
        header.set_size(2 << 20);
        header.set_cksum();
        hidden.append(&header, &vec![b'n'; 2 << 20][..]).unwrap();
        let hidden = hidden.into_inner().unwrap();
        let tar = |size: &[u8]| {
            tar_gz(|b| {
                entry(b, "pax", Type::XHeader, "", size);
                entry(b, "f", Type::Regular, "", &hidden);
            })
        };
        assert_rejected(&tar(b"9 size=0\n"), ArchiveFormat::TarGz, "two sizes");
        let same = format!("16 size={:07}\n", hidden.len());
        assert_eq!(same.len(), 16);
        let (_dir, honest) = run(&tar(same.as_bytes()), ArchiveFormat::TarGz);
        assert!(honest.is_ok(), "{honest:?}");
    }

    fn zipped(build: impl FnOnce(&mut zip::ZipWriter<io::Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        build(&mut writer);
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn hostile_zips_are_refused() {
        let plain = SimpleFileOptions::default();
        for name in ["../evil", "/tmp/claudemesh-evil", "a/../../evil", "C:/evil", "..\\evil"] {
            // The writer cleans some names, so a placeholder of equal length is patched in both headers.
            let stand_in = "x".repeat(name.len());
            let mut bytes = zipped(|w| w.start_file(stand_in.as_str(), plain).unwrap());
            let at: Vec<usize> = (0..bytes.len() - name.len())
                .filter(|&i| bytes[i..].starts_with(stand_in.as_bytes()))
                .collect();
            at.into_iter().for_each(|i| bytes[i..i + name.len()].copy_from_slice(name.as_bytes()));
            assert_rejected(&bytes, ArchiveFormat::Zip, name);
        }
        let link = zipped(|w| w.add_symlink("l", "../../etc/passwd", plain).unwrap());
        assert_rejected(&link, ArchiveFormat::Zip, "link out");
        let bomb = zipped(|w| {
            w.start_file("zeros", plain.compression_method(zip::CompressionMethod::Deflated)).unwrap();
            w.write_all(&vec![0; 17 << 20]).unwrap();
        });
        assert_rejected(&bomb, ArchiveFormat::Zip, "ratio");
        assert_rejected(b"PK not a zip", ArchiveFormat::Zip, "garbage");
        assert_rejected(b"not gzip either", ArchiveFormat::TarGz, "garbage");
    }

    #[test]
    fn a_zip_with_a_name_twice_is_refused() {
        let plain = SimpleFileOptions::default();
        let mut bytes = zipped(|w| {
            w.start_file("aaaa", plain).unwrap();
            w.start_file("bbbb", plain).unwrap();
        });
        let at: Vec<usize> = (0..bytes.len() - 4).filter(|&i| &bytes[i..i + 4] == b"bbbb").collect();
        at.into_iter().for_each(|i| bytes[i..i + 4].copy_from_slice(b"aaaa"));
        assert_rejected(&bytes, ArchiveFormat::Zip, "twice");
    }

    #[test]
    fn a_single_top_folder_is_the_project_and_modes_survive() {
        let bytes = zipped(|w| {
            w.start_file("proj/server.py", SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
            w.write_all(b"print()").unwrap();
        });
        let (_dir, root) = run(&bytes, ArchiveFormat::Zip);
        let root = root.unwrap();
        assert!(root.ends_with("proj"));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(root.join("server.py").metadata().unwrap().permissions().mode() & 0o111, 0o111);
    }
}
