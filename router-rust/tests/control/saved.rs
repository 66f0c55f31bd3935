//! The last list of services on disk, and a disk that fails.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use infini_router::registry::saved::SavedList;

use crate::rig::{Folder, engine, listed, names};

/// What is logged meanwhile, one line for each event.
fn logged(work: impl FnOnce()) -> String {
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(data)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::<Mutex<Vec<u8>>>::default();
    let log = Arc::clone(&lines);
    let writer = move || Log(Arc::clone(&log));
    let subscriber = tracing_subscriber::fmt().with_writer(writer).finish();
    tracing::subscriber::with_default(subscriber, work);
    let text = lines.lock().unwrap().clone();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_damaged_last_list_is_ignored() {
    let folder = Folder::new();
    for content in ["", "{", "[]", r#"{"services": 3}"#, r#"{"services": [{}]}"#] {
        folder.file("router_last_services_8080.json", content);
        assert!(
            SavedList::new(&folder.0, 8080).load().is_empty(),
            "{content}"
        );
    }
}

#[test]
fn the_last_list_replaces_the_file_in_one_step_and_only_on_change() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = Folder::new();
    let saved = SavedList::new(&folder.0.join("new"), 8080);
    let inode = || fs::metadata(&saved.path).unwrap().ino();
    saved.save(&listed([engine("a", 1, &[])]));
    let first = inode();
    saved.save(&listed([engine("a", 1, &[])]));
    assert_eq!(inode(), first);
    saved.save(&listed([engine("a", 1, &[]), engine("b", 2, &[])]));
    let files: Vec<_> = fs::read_dir(folder.0.join("new")).unwrap().collect();
    assert_eq!(files.len(), 1);
    assert_eq!(names(&saved.load()), ["a", "b"]);
}

#[test]
fn a_folder_that_cannot_be_written_costs_only_the_saved_list() {
    let folder = Folder::new();
    let file = PathBuf::from(folder.file("file", ""));
    SavedList::new(&file, 8080).save(&listed([engine("a", 1, &[])]));
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[test]
fn a_list_that_could_not_be_saved_is_saved_when_that_is_possible_again() {
    let folder = Folder::new();
    let saved = SavedList::new(&folder.0, 8080);
    let list = listed([engine("a", 1, &[])]);
    let failures = |times| {
        fs::create_dir(&saved.path).unwrap(); // nothing can be put in its place
        let told = logged(|| (0..times).for_each(|_| saved.save(&list)));
        let drafts = fs::read_dir(&folder.0).unwrap().count() - 1;
        fs::remove_dir(&saved.path).unwrap();
        (told.matches("list not saved").count(), drafts)
    };
    assert_eq!(failures(3), (1, 0));
    assert_eq!(failures(1), (0, 0), "it is one row");
    saved.save(&list);
    assert_eq!(names(&saved.load()), ["a"]);
    fs::remove_file(&saved.path).unwrap();
    let list = listed([engine("b", 2, &[])]);
    fs::create_dir(&saved.path).unwrap();
    assert_eq!(logged(|| saved.save(&list)).lines().count(), 1);
}
