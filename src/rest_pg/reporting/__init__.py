"""What people read: HTML pages and Markdown in which users' texts stay texts."""
