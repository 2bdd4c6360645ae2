"""What is trained here, and on what: the networks (`models`) and labelled images (`data`)."""
