"""Chats as data: the turn tree and its database."""
