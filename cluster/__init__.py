"""Where the stages run: Ray actors on one machine or many, several devices for one clip. Needs the `cluster` extra."""
