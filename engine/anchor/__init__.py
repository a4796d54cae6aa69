"""The anchor: the clip as the new camera sees it, with holes where the source camera saw nothing."""
